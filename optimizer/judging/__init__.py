"""What a gate judges by: metrics, their confidence intervals, and the summaries for those who read the verdicts."""
