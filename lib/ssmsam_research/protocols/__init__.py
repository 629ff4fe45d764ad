"""What is measured: clicks, complete, crosspatient, active, registration, speed, load; in this process and over REST."""
