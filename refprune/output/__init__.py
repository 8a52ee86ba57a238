"""What leaves the program: files, progress on the screen, tables, figures."""
