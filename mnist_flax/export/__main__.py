from mnist_flax.export.command import main

raise SystemExit(main())
