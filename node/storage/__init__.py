"""What survives a power cut: block log, LevelDB, journal."""
