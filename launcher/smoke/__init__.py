"""What `action=smoke` asks of a deployment, and what it has to see."""
