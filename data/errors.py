"""What a user can get wrong."""


class InputError(ValueError):
    """Wrong input: the message names what was given, what is accepted and the way out.

    The command line prints the message without a traceback and exits with code 2.
    """
