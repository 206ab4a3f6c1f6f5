"""Mean and covariance of what every layer sees, without data or from the user's inputs."""
