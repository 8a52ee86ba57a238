"""Kills, full disks, closed pipes and two at once, at every write of a command: `python -m validation.faults`."""
