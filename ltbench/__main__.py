from ltbench.cli.main import main

main()
