"""What ``make storm`` does to trainings and data."""
