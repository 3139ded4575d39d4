"""The one exception that users see."""


class RecapError(Exception):
    """A problem the user can fix. The message names the key, its value, the choices and the fix; it is printed without a traceback."""
