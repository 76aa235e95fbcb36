"""What is measured on an epoch's records, and by LUNA16's rules on a submission."""
