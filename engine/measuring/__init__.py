"""What a step costs: time, memory and arithmetic."""
