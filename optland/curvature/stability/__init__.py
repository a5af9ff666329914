"""What an optimizer can stand, and how far it is from that."""
