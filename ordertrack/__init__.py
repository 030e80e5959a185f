"""OrderTrack: real-time order tracking. The README explains the layout."""
