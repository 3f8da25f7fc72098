"""What puts a run together: from settings to parts that fit, checked before any compute is spent."""
