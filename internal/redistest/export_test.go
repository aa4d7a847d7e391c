package redistest

// LaunchOn is Launch with a given port, without a second attempt.
func LaunchOn(port int) (*Server, error) { return launchOn(port, nil) }

// Port is the port that the server listens on.
func (s *Server) Port() int { return s.port }

// Dir is the directory that the server runs in.
func (s *Server) Dir() string { return s.dir }
