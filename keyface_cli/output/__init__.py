"""What goes out: the kinds of results, and the writer of each."""
