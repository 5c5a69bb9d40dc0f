"""Who may do what, and who may read which document: keys enter, callers and conditions leave. It knows no HTTP."""
