"""HTTP views: each parses a request, calls the service of its name, and presents the result."""
