"""Speed, measured: of training, and of the data pipeline beside others."""
