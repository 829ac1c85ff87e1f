"""Mathematics without networks and backends: activations, losses, least squares, uncertainty."""
