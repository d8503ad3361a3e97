"""What the commands of hpcdat do, without their options."""
