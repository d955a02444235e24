package compile

// CompileWhole compiles a snapshot in one piece, as if there were no parts.
var CompileWhole = compileAll
