"""Files written: results, saved datasets, appended rows, logged features."""
