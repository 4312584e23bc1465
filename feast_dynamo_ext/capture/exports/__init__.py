"""What exports and scans of a table show becomes history: started, read, a window at a time."""
