"""What a run would stumble over: every node looked at, every link measured, before it is started."""
