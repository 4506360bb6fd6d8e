"""A campaign against the program: kills, damaged files, full disks, jumping clocks, load."""
