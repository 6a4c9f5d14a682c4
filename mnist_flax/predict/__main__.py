from mnist_flax.predict.command import main

raise SystemExit(main())
