"""`refprune verify`: is an implementation right, where does it first differ, and which known mistake is that?"""
