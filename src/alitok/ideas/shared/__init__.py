"""What two or more ideas use."""
