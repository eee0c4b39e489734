"""report.html: one file that shows a run, opens offline and asks the network for nothing."""
