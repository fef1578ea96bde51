"""Many clients on one machine or a cluster: populations, cohorts and rounds."""
