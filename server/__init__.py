"""The aggregator's side: Flower ServerApp, rounds, aggregation."""
