"""OrderTrack beside what one would otherwise pick, measured on one machine in one run."""
