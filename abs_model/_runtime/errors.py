"""The error class of problems that the person at the command line can fix."""


class UserError(Exception):
    """Something the user asked for can't be done; the message says what and how to fix it.

    `abs_model._runtime.command_line.run_main` prints it as one message without a traceback.
    It is deliberately no `ValueError`: flag parsers wrap those in the traceback of the
    configuration file.
    """
