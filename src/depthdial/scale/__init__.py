"""Several processes, on one machine or on a cluster's, through Ray: sweeps, searches, and replicas of the server."""
