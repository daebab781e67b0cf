/* The chain checked, off the page’s thread. */
'use strict';
