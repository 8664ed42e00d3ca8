"""The commands, a file each: arguments, one call into the package, and what is printed."""
