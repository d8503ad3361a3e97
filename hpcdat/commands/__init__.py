"""The commands of hpcdat, without their command-line options."""
