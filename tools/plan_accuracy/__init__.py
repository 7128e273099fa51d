"""How near a plan's memory comes to what a process takes."""
