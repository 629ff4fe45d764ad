"""What is measured: clicks, complete, crosspatient, active, registration, speed, load; here and over REST."""
