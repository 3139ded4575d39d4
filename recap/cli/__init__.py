"""A command line becomes typed runs, and errors that fit on one screen."""
