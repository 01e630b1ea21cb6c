"""``twofold doctor``: is this installation fit to train, and if not, what repairs it?"""
