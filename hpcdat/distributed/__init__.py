"""Workers: how they are launched, find each other, wait for each other and end together."""
