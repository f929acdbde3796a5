"""What choosing a depth for each sequence could gain; numpy alone."""
