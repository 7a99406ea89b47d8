"""The command line of vitembed: parse, one library call, print."""
