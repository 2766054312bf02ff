"""What the command line does besides running stages, a module a subject.

Rooms are imported where they are used, so that printing a recipe needs no torch.
"""
