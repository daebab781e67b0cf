/* A job's events, each with its proof. */
'use strict';
