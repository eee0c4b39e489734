"""What an app developer gets beside the network: a description, a C++ example of this very network, and a README."""
