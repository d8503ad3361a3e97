"""Workers: launching, rendezvous, collectives, waiting with a bound, ending together."""
