"""Many silos on one machine: scenarios, engines, baselines, comparison and report."""
