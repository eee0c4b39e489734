"""What lies beside an .mlpackage for the developer of an application: Swift with this network's values, and a README."""
