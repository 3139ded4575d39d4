"""What any room may use: errors, files, console, devices, typed keys."""
